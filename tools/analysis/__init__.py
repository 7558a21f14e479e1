"""Parts of the tools that look at gradients: laws, distances, the paper's error, figures."""
