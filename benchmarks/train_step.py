"""Seconds per pre-training step on one device: ours, and transformers' VideoMAE on torch.

    PYTHONPATH=. python benchmarks/train_step.py --size B --batch 64 --dtype bf16

README.md says how to read the result.
"""

from __future__ import annotations

import argparse
import sys

import side_by_side
import training_step


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    side_by_side.add_step_arguments(parser, batch=64)
    training_step.add_arguments(parser)
    parser.add_argument("--mask-ratio", type=float, default=0.9)
    return side_by_side.parse(parser)


def main() -> int:
    if side_by_side.serve(side_by_side.Turns(training_step.make_side)):
        return 0
    args = parse_arguments()

    from vmae_jax.config import VideoMAEConfig
    from vmae_jax.flops import pretraining_flops

    settings = training_step.settings_of(args, "pretraining")
    config = VideoMAEConfig.from_dict(settings["config"])
    flops_per_clip = pretraining_flops(config, settings["num_masked"])
    return side_by_side.compare("train_step", args, settings, flops_per_clip)


if __name__ == "__main__":
    sys.exit(main())
