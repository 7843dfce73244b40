"""python -m softq is softq."""

from softq.cli.main import main

main()
