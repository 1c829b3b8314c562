"""Bounds of what a file or a configuration may ask for.

They are far above what work needs, and far below what fills a machine's memory: a file of unknown
origin must not.
"""

IMAGE_SIZES = (16, 8192)  # side of the network's square, pixels
MAX_WORKERS = 128  # loader processes; one takes some 200 MB
MAX_CLASSES = 256  # masks are uint8
MAX_MEMBERS = 100  # of an ensemble; each is a network in memory
MAX_PARAMETERS = 10**9  # of a network: 4 GB; the largest shipped one has 410 million
MAX_TEXT_BYTES = 64 * 2**20  # JSON; the manifest of 100,000 images has about 25 MB
MAX_CONFIG_BYTES = 2**20  # YAML and INI; the largest shipped one has 2 kB
MAX_YAML_VALUES = 100_000  # once aliases are written out; the largest shipped one has 60
