// A web server in Go: static, and by cgo with the C library's look-ups of names.
package main

import (
	"fmt"
	"net/http"
)

func main() {
	http.HandleFunc("/", func(answer http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(answer, "hello from Go")
	})
	panic(http.ListenAndServe(":80", nil))
}
