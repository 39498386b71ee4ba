"""What a pretraining run will take, before anyone pays for it: memory, tokens, FLOPs, time, and failures.

``accelerators`` knows devices, ``workload`` counts a step's work, ``memory`` what a rank must hold, ``failures`` plays
interruptions, ``estimate`` puts them together.
"""
