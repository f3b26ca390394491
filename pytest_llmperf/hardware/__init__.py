"""One device: its clock and memory, what it is and how it is doing. torch lives here."""
