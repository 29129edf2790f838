"""Sphinx's settings. `docs/build.py` runs the notebooks; here they are only rendered."""

project = "vmae_jax"
copyright = "the authors of vmae_jax"
extensions = ["myst_nb"]
nb_execution_mode = "off"
nb_output_stderr = "error"  # whatever a notebook warns of
myst_enable_extensions = ["dollarmath"]
html_title = "vmae_jax"
html_theme_options = {"page_width": "1180px"}  # a line of code fits
