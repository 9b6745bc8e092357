"""From a request's behaviour to one coefficient for each member."""
