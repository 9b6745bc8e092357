"""The playground: a page on which one sees what each expert did to each token. `static/` is served as it is."""
