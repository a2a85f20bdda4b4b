"""Where all contenders compute. Alone here, so that a peer's process loads nothing of Parley."""

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
