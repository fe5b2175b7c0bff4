"""Which OpenGL draws: found before robosuite is imported, because it reads MUJOCO_GL then."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import MutableMapping
from typing import Any

from harness.errors import HarnessError

EGL = ("libEGL.so.1", "libEGL.so")
OSMESA = ("libOSMesa.so.8", "libOSMesa.so")
_PLATFORM_DEVICE = 0x313F
_MOST_DEVICES = 64


def choose(environ: MutableMapping[str, str] | None = None) -> str:
    """What draws, "egl" or "osmesa", after setting it in the environment.

    What MUJOCO_GL asks for; else EGL if it has a display without a screen, else OSMesa. Raises: HarnessError
    "gl-missing", with the packages that mend it.
    """
    environ = os.environ if environ is None else environ
    asked = environ.get("MUJOCO_GL", "").strip().lower()
    if asked not in ("", *_WORKS):
        raise _missing(f"MUJOCO_GL={asked}, which needs a screen")
    for name in (asked,) if asked else tuple(_WORKS):
        if _WORKS[name]():
            environ["MUJOCO_GL"] = environ["PYOPENGL_PLATFORM"] = name
            return name
    raise _missing(f"no {asked or 'EGL display and no OSMesa'}")


def _missing(got: str) -> HarnessError:
    return HarnessError(
        "gl-missing",
        "the simulator has no OpenGL library to draw its pictures with",
        got=got,
        need="EGL (libEGL.so.1 with a driver) or OSMesa (libOSMesa.so.8), and MUJOCO_GL unset, egl or osmesa",
        fix="apt-get install libegl1 libegl-mesa0, or apt-get install libosmesa6; for an NVIDIA card's EGL"
        " start the container with NVIDIA_DRIVER_CAPABILITIES=all",
    )


def _library(names: tuple[str, ...]) -> ctypes.CDLL | None:
    for name in names:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    return None


def _osmesa_works() -> bool:
    return _library(OSMESA) is not None


def _egl_works() -> bool:
    """Whether a device of EGL opens. A library without a driver has none."""
    library = _library(EGL)
    if library is None:
        return False
    library.eglGetProcAddress.restype = ctypes.c_void_p
    addresses = [
        library.eglGetProcAddress(name) for name in (b"eglQueryDevicesEXT", b"eglGetPlatformDisplayEXT")
    ]
    if None in addresses:
        return False
    query = ctypes.CFUNCTYPE(
        ctypes.c_uint, ctypes.c_int, ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(ctypes.c_int)
    )(addresses[0])
    display_of = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(
        addresses[1]
    )
    devices, count = (ctypes.c_void_p * _MOST_DEVICES)(), ctypes.c_int(0)
    if not query(_MOST_DEVICES, devices, ctypes.byref(count)):
        return False
    library.eglInitialize.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    return any(
        display and library.eglInitialize(display, None, None)
        for display in (display_of(_PLATFORM_DEVICE, devices[at], None) for at in range(count.value))
    )


_WORKS = {"egl": _egl_works, "osmesa": _osmesa_works}


def renderer() -> dict[str, str]:
    """What draws, by its own words: "name", and "gl", "vendor", "renderer", "version".

    "name" leaves out what does not change a picture: OSMesa and Mesa's EGL draw by one program, llvmpipe.
    Call `choose` before. Raises: HarnessError "gl-missing" if no context can be made.
    """
    from robosuite.utils.binding_utils import GLContext

    try:
        context: Any = GLContext(max_width=64, max_height=64, device_id=-1)
        context.make_current()
        from OpenGL import GL

        words = {
            key: (GL.glGetString(value) or b"").decode(errors="replace")
            for key, value in (
                ("vendor", GL.GL_VENDOR),
                ("renderer", GL.GL_RENDERER),
                ("version", GL.GL_VERSION),
            )
        }
        context.free()
    # PyOpenGL raises whatever the library at hand gives: attributes that are None, its own errors.
    except Exception as error:
        raise _missing(repr(error)[:200]) from error
    name = words["renderer"].split(" (")[0].split("/")[0].strip() or "unknown"
    return {"name": name, "gl": os.environ["MUJOCO_GL"], **words}
