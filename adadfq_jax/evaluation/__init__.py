"""What a network is worth: `accuracy` on labelled images, `health` without data, and `statistics`,
whether a teacher is what it was read as.
"""
