"""Parts of the suite ``kernels``: each op and the model against the best there is, on an NVIDIA GPU and on a CPU.

Needs cellfoundry_kernels, cellfoundry_model, torch and numpy only. FLOPs are the useful ones: nobody asked for
padding, so a padded peer is credited with the same FLOPs for the same cells.
"""
