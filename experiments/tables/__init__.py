"""Tables of our scores and the papers', as text in every format."""
