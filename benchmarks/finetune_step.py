"""Seconds per fine-tuning step on one device: ours, and transformers' VideoMAE on torch.

    PYTHONPATH=. python benchmarks/finetune_step.py --size B --batch 16 --dtype bf16

Ours is the step of the published recipes: mixup and cutmix, erasing, flips, smoothed labels, drop
path, rates that fall from layer to layer. README.md says how to read the result.
"""

from __future__ import annotations

import argparse
import sys

import side_by_side
import training_step


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    side_by_side.add_step_arguments(parser, batch=16)
    training_step.add_arguments(parser)
    args = side_by_side.parse(parser)
    if args.batch % 2:
        parser.error(f"--batch={args.batch} must be even: clips are mixed in pairs")
    return args


def main() -> int:
    if side_by_side.serve(side_by_side.Turns(training_step.make_side)):
        return 0
    args = parse_arguments()

    from vmae_jax.config import VideoMAEConfig
    from vmae_jax.flops import classification_flops

    settings = training_step.settings_of(args, "finetuning")
    flops_per_clip = classification_flops(VideoMAEConfig.from_dict(settings["config"]))
    return side_by_side.compare("finetune_step", args, settings, flops_per_clip)


if __name__ == "__main__":
    sys.exit(main())
