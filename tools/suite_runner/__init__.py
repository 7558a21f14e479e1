"""Parts of run_suite.py: the suite file, one training's process, time left, the loop."""
