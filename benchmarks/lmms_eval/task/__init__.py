"""An lmms-eval task: `--include_path` names this folder. Its files import nothing of METok."""
