"""A local page on which a layer's arguments are turned, pointed at and tried on a picture: `upconv explore`.

>>> from upconv.explore import Settings
>>> print(Settings(size=(5, 5), kernel=(4, 4), stride=(2, 2), padding=((1, 1), (1, 1))).spec())
ConvTranspose2d 1 -> 1, kernel 4x4, stride 2x2, padding 1x1

`serve()` runs it (marimo, the extra `explore`); the page itself is upconv/explore/app.py.
"""

from upconv.explore.server import serve
from upconv.explore.settings import Settings

__all__ = ["Settings", "serve"]
