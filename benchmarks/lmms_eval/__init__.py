"""METok under lmms-eval: its model `metok`, a task over any folder of questions, and a check.

`plugin` and `model` are loaded by lmms-eval, in its own environment. docs/evaluation.md has the
command lines.
"""
