"""The paper's classifier experiments (arXiv 2502.08580, section 3.1.2), from one configuration file to one report."""
