"""One optimization as a page: what it shows, read from the run store, and the HTML, scripts and styles of it."""
