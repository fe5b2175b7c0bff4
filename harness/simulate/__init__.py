"""LIBERO's simulator, in a Python of its own: what is measured there, and by which protocol.

The modules are imported by the harness's own Python too (frames, protocols), so mujoco, robosuite and libero
are imported inside functions.
"""
