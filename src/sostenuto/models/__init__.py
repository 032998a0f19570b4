"""One file per paper, and the one table of models (`table.py`). Importing this room does not import torch."""
