"""Tables × ranks → plan → sharded module. The model knows nothing of this room."""
