"""Networks: the `layers` of teacher and student, the architectures (`resnet_cifar`, `resnet`,
`mobilenet_v2`) by name (`registry`), the `generator`, a `network` with its variables, its `size`,
and any classifier as a `graph` of `operations`, which `tracing` reads off a hand-written module.

An architecture is a linen module with the fields `classes`, `widths`, `norm`, `calibration` and
`remat`, made of the layers of `layers` alone. It hands `calibration` to every `QuantReLU`, whose
names contain "relu"; its last layer is called `classifier`.
"""
