"""One video and one question, with and without METok, in this process through `vllm.LLM`.

    python examples/example_metok.py
    python examples/example_metok.py holiday.mp4 "Where do they have lunch?" \
        --model llava-hf/llava-onevision-qwen2-7b-ov-hf \
        --alignment-model google/siglip-so400m-patch14-384

Without arguments it asks the embedded demo model about the sample video.
"""

from __future__ import annotations

import argparse
import base64
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams

from metok_vllm.demo import ALIGNMENT_DIR, CONFIG_FILE, MODEL_DIR, SAMPLE_QUESTION, SAMPLE_VIDEO


def main() -> None:
    """Ask twice and print both answers with the number of tokens that the decoder was given."""
    parser = argparse.ArgumentParser(description="One question with and without METok.")
    parser.add_argument("video", nargs="?", type=Path, default=SAMPLE_VIDEO)
    parser.add_argument("question", nargs="?", default=SAMPLE_QUESTION)
    parser.add_argument("--model", help="path or hub name (default: the embedded demo model)")
    parser.add_argument("--alignment-model", help="SigLIP or CLIP that ranks frames")
    parser.add_argument("--metok-config", type=Path, help="YAML file, as from `metok calibrate`")
    parser.add_argument("--preset", default="balanced", help="quality, balanced or max")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--max-model-len", type=int, default=16384)
    args = parser.parse_args()

    # The demo's weights are float32, and its own file has the layers that suit it.
    engine: dict[str, Any] = {}
    if args.model is None:
        args.model, engine = str(MODEL_DIR), {"dtype": "float32", "enforce_eager": True}
        args.alignment_model = args.alignment_model or str(ALIGNMENT_DIR)
        args.metok_config = args.metok_config or CONFIG_FILE
    named = {"alignment_model": args.alignment_model, "config_file": args.metok_config}
    metok = {name: str(value) for name, value in named.items() if value}
    llm = LLM(
        args.model,
        **engine,
        max_model_len=args.max_model_len,
        limit_mm_per_prompt={"video": 1},
        media_io_kwargs={"video": {"video_backend": "metok", "num_frames": args.frames}},
        additional_config={"metok": metok},
    )
    video = "data:video/mp4;base64," + base64.b64encode(args.video.read_bytes()).decode()
    content = [
        {"type": "video_url", "video_url": {"url": video}},
        {"type": "text", "text": args.question},
    ]
    sampling = SamplingParams(temperature=0, max_tokens=64)
    for name, request in (
        ("without METok", {"enabled": False}),
        ("with METok", {"preset": args.preset}),
    ):
        (output,) = llm.chat(
            [{"role": "user", "content": content}],
            sampling,
            use_tqdm=False,
            mm_processor_kwargs={"metok": request},
        )
        print(f"{name}: {len(output.prompt_token_ids)} prompt tokens: {output.outputs[0].text}")


if __name__ == "__main__":  # vLLM starts its engine in a process of its own
    main()
