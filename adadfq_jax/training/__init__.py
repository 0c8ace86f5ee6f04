"""One run, from a configuration to a measured student.

`quantize` is the way in: it checks what was given and opens the `workdir`; `loop` plays, and
`watch` reads the steps' metrics meanwhile. `measure` measures the student, `result` tells the
numbers, `cost` what the steps will ask of the devices. `checkpoint` and `metric_log` are what a
run writes, `student` and `held_out` what is read back of it, `exports` the files that it leaves;
`samples` and `pictures` show the generator's images. `calibrated` makes students that are not
trained. What the players minimise is in `game`.
"""
