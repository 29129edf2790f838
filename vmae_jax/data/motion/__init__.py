"""A data set that is rendered: patches move over real clips, and their motion is the class."""
