"""A run, from its options to the folder that it leaves; everything about it for any bags.

`config` what is asked for · `processes` devices and hosts · `cli` options of a command · `fit` training that leaves a
trace · `summary` the results as records · `figures` · `screen` · `folder`, `checkpoints`, `saved` what is on the disk ·
`tensorboard` · `experiment` all of it in order.
"""
