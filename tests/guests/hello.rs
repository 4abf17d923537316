// A web server in Rust.
use std::io::{BufRead, BufReader, Result, Write};
use std::net::{TcpListener, TcpStream};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\nConnection: close\r\n\r\nhello from Rust\n";

fn answer(mut client: TcpStream) -> Result<()> {
    for line in BufReader::new(client.try_clone()?).lines() {
        if line?.is_empty() {
            return client.write_all(ANSWER);
        }
    }
    Ok(())
}

fn main() -> Result<()> {
    for client in TcpListener::bind("0.0.0.0:80")?.incoming() {
        let client = client?;
        std::thread::spawn(move || answer(client));
    }
    Ok(())
}
