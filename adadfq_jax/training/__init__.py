"""One run, from a configuration to a measured student.

`quantize` starts a run: it checks the arguments, estimates the `cost` and takes the `workdir`.
`loop` takes the steps, shows `progress` in `words` and writes each `checkpoint`; `watch` reads the
steps' metrics and writes the `metric_log`; `measure` evaluates the student on the way. At the end
stand a `result` and the `exports`. `student` reads a workdir back, `held_out` and `samples` make
images with its generator, and `pictures` draws them. `calibrated` makes students without training.
The losses are in `adadfq_jax.game`.
"""
