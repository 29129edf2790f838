"""Commands of `python -m vmae_jax`: a module each, with `add_arguments(parser)` and `run(args)`.

A module is imported only when its command is called; the list of them is in `vmae_jax.__main__`.
"""
