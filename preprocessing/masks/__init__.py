"""Object masks: networks behind one interface, and what makes them agree."""
