// A web server in JavaScript.
require("node:http")
  .createServer((_, answer) => answer.end("hello from Node\n"))
  .listen(80, "0.0.0.0");
