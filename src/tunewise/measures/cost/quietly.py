"""Loaded before all else by the processes that memory is measured in: libraries are quiet from the start."""

from tunewise.quiet import quiet_libraries

quiet_libraries()
