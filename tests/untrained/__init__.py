"""A video model with random weights, for tests that compare the arithmetic alone.

Random weights attend to all tokens a little, so that a missing token changes the logits more than
in a trained model. The model is written once a process in the published layout.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path

from tests.untrained.weights import alignment_model, video_model
from training.checkpoint import write_alignment, write_model
from training.sizes import Sizes
from training.tokenizers import chat_tokenizer

SEED = 20250602
# With 14 x 14 patches a frame, strides 2, 4 and 8 give 49, 16 and 4 tokens.
SIZES = Sizes(
    decoder_layers=8, patch=8, tower_layers=3, video_tower_layers=3, image=112, decoder_ffn=256
)


def _write() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="metok-untrained-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_model(folder, SIZES, video_model(SIZES, SEED, chat_tokenizer(SIZES.vocab)))
    write_alignment(folder / "alignment", SIZES, alignment_model(SIZES, SEED))
    return folder


MODEL_DIR = _write()
ALIGNMENT_DIR = MODEL_DIR / "alignment"
