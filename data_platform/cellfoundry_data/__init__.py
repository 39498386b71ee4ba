"""Data platform: vocabulary, readers, QC, shard store and loader.

Submodules are imported by name (``cellfoundry_data.loader``), never here: the batch type must be importable with
numpy alone.
"""
