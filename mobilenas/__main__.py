"""``python -m mobilenas``."""

from mobilenas.cli import main

main()
