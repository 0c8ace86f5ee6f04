"""Networks: `layers` that serve teacher and student alike, the architectures (`resnet_cifar`,
`resnet`, `mobilenet_v2`) by name (`registry`), the `generator`, what a `network` is with its
variables, its `size`, and its operations as a `graph`.
"""
