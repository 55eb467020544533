# A server of HTTP and WebSockets in the guest, of what a bare Debian has: perl-base and coreutils. It answers a request with its
# method, path and the length of its body, and sends back each frame of up to 125 bytes as it came.
use strict;
use IO::Socket::INET;
$SIG{CHLD} = 'IGNORE';
my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 8080, Listen => 64, ReuseAddr => 1) or die "$!";
$| = 1;
print "listening\n";
while (1) {
  my $c = $server->accept or next;
  next if fork;
  binmode $c;
  my ($head, $buf) = ('', '');
  while ($head !~ /\r\n\r\n/) { sysread($c, $head, 4096, length $head) or exit; }
  ($head, $buf) = split /\r\n\r\n/, $head, 2;
  my ($method, $path) = split ' ', $head;
  if ($head =~ /^sec-websocket-key: *(\S+)/mi) {
    my ($hex) = split ' ', `printf %s '${1}258EAFA5-E914-47DA-95CA-C5AB0DC85B11' | sha1sum`;
    my $accept = pack('u', pack('H*', $hex));
    $accept =~ s/^.//; chomp $accept;
    $accept =~ tr/`!-_/AB-Za-z0-9+\//;
    substr($accept, 27, 1) = '=';
    syswrite $c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: $accept\r\n\r\n";
    while (1) {
      while (length $buf < 2) { sysread($c, $buf, 4096, length $buf) or exit; }
      my ($op, $len) = (ord($buf) & 15, ord(substr $buf, 1) & 127);
      while (length $buf < 6 + $len) { sysread($c, $buf, 4096, length $buf) or exit; }
      my $mask = substr $buf, 2, 4;
      my $data = substr($buf, 6, $len) ^ substr($mask x 32, 0, $len);
      $buf = substr $buf, 6 + $len;
      syswrite $c, chr(128 | $op) . chr($len) . $data;
      exit if $op == 8;
    }
  }
  my $length = $head =~ /^content-length: *(\d+)/mi ? $1 : 0;
  my $got = length $buf;
  while ($got < $length) { my $n = sysread($c, my $more, 65536) or exit; $got += $n; }
  my $body = "$method $path $got";
  syswrite $c, "HTTP/1.1 200 OK\r\nContent-Length: " . length($body) . "\r\nConnection: close\r\n\r\n$body";
  exit;
}
