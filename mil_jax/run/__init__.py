"""A run, from its options to the folder that it leaves."""
