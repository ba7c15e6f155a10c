"""Tables of our scores beside the papers', as text in every format."""
