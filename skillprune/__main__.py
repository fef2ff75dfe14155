"""``python -m skillprune``, which is how torchrun starts the command line."""

from skillprune.cli import main

main()
