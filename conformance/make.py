"""Write vectors.json beside this file, the whole of it or nothing: python conformance/make.py"""

import os
from pathlib import Path

from softq.data.store import synced
from softq.verify.vectors import vectors, written

if __name__ == "__main__":
    path = Path(__file__).with_name("vectors.json")
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(written(vectors()) + "\n", encoding="utf-8")
    synced(partial)
    os.replace(partial, path)
