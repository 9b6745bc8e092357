"""From what a request asks to one number for each member."""
