"""Files as transformers writes them, a hub that has them, and processes that ask it."""

from __future__ import annotations

import contextlib
import importlib
import os
import subprocess
import sys
from pathlib import Path

import hub_server

import vmae_jax

# What users rely on is as published: 16 frames of 224 x 224 pixels, 1568 tokens.
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 3,
    "decoder_intermediate_size": 48,
}
# Not the processor's defaults, so that a file which is not read would be seen.
STATISTICS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def their_processor(**options):
    module = "transformers.models.videomae.image_processing_pil_videomae"
    return importlib.import_module(module).VideoMAEImageProcessorPil(**options)


def random_model(model_class, **options):
    """A small model of transformers, in which no bias is 0 and no scale 1."""
    import torch

    torch.manual_seed(0)
    model = model_class(model_class.config_class(**SMALL, **options)).eval()
    for parameter in model.requires_grad_(False).parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return model


def files_of(model, folder):
    """What transformers saves for a model, with a processor."""
    model.save_pretrained(folder)
    their_processor(**STATISTICS).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@contextlib.contextmanager
def running_hub():
    """A hub on this machine that has data sets as well, under their ids."""
    with hub_server.running() as server:

        class Handler(server.RequestHandlerClass):
            def do_GET(self):
                self.path = self.path.removeprefix("/datasets")
                super().do_GET()

        server.RequestHandlerClass = Handler
        yield server


def run_python(arguments, home, **environment):
    """A process that sees no cache but `home` and knows nothing of the hub but what is given."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    folders = [Path(vmae_jax.__file__).parents[1], Path(__file__).parent]
    return subprocess.run(
        [sys.executable, *arguments],
        env={
            **inherited,
            "PYTHONPATH": os.pathsep.join(map(str, folders)),
            "NO_PROXY": "*",
            "HF_HOME": str(home),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            **environment,
        },
        cwd=home,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
