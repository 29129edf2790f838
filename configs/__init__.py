"""Recipes: what differs from `default.py`, one file for each published run.

`python train.py --config=configs/demo.py` takes them by their path; where the package is installed
they are modules: `from vmae_jax.configs import demo`, then `demo.get_config()`.
"""
