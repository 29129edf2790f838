"""Recipes; installed as `vmae_jax.configs`. `default` has every option, the others what differs."""
