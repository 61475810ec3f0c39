"""Ranking models and their checkpoints.

`checkpoints` turns names into folders and folders into models; `bert_dot`, `cross_encoder` and `colbert` hold one
architecture each.
"""
