// SPDX-License-Identifier: Apache-2.0
#include "init/network.hpp"
#include <arpa/inet.h>
#include <linux/if_addr.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cstring>
#include "common/failure.hpp"
#include "common/messages.hpp"

namespace ambit {

constexpr int kLoopback = 1;  // the index of `lo` in every network namespace

// One request to rtnetlink(7), waited for.
class Request {
 public:
  Request(uint16_t type, const void* body, size_t size) {
    Header()->nlmsg_type = type;
    Header()->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    Append(body, size, NLMSG_HDRLEN);
  }
  void Attribute(uint16_t type, const void* data, size_t size) {
    struct rtattr attribute = {static_cast<uint16_t>(RTA_LENGTH(size)), type};
    size_t at = NLMSG_ALIGN(Header()->nlmsg_len);
    memcpy(bytes_ + at, &attribute, sizeof attribute);
    Append(data, size, at + RTA_LENGTH(0));
  }
  void Send(int socket, const char* step) {
    Must(static_cast<int>(send(socket, bytes_, Header()->nlmsg_len, 0)), step);
    alignas(NLMSG_ALIGNTO) char reply[1024];
    ssize_t size = recv(socket, reply, sizeof reply, 0);
    Must(static_cast<int>(size), step);
    auto* header = reinterpret_cast<struct nlmsghdr*>(reply);
    if (!NLMSG_OK(header, static_cast<size_t>(size)) || header->nlmsg_type != NLMSG_ERROR) Fail(step, EPROTO);
    int error = -static_cast<struct nlmsgerr*>(NLMSG_DATA(header))->error;
    if (error != 0 && error != EEXIST) Fail(step, error);
  }

 private:
  struct nlmsghdr* Header() { return reinterpret_cast<struct nlmsghdr*>(bytes_); }
  void Append(const void* data, size_t size, size_t at) {
    memcpy(bytes_ + at, data, size);
    Header()->nlmsg_len = at + size;
  }
  alignas(NLMSG_ALIGNTO) char bytes_[256] = {};
};

static void AddAddress(int netlink, int family, const void* address, size_t size, uint8_t prefix, const char* step) {
  struct ifaddrmsg body = {static_cast<uint8_t>(family), prefix, IFA_F_NODAD | IFA_F_PERMANENT, RT_SCOPE_UNIVERSE, kLoopback};
  Request request(RTM_NEWADDR, &body, sizeof body);
  request.Attribute(IFA_LOCAL, address, size);
  request.Attribute(IFA_ADDRESS, address, size);
  request.Send(netlink, step);
}

// `ip route add local default dev lo`: every address is this machine's, so that a listening socket can be found for it.
static void AddLocalRoute(int netlink, int family, const char* step) {
  struct rtmsg body = {};
  body.rtm_family = family;
  body.rtm_table = RT_TABLE_LOCAL;
  body.rtm_protocol = RTPROT_BOOT;
  body.rtm_scope = family == AF_INET ? RT_SCOPE_HOST : RT_SCOPE_UNIVERSE;
  body.rtm_type = RTN_LOCAL;
  Request request(RTM_NEWROUTE, &body, sizeof body);
  uint32_t index = kLoopback;
  request.Attribute(RTA_OIF, &index, sizeof index);
  request.Send(netlink, step);
}

static Fd Open(int family, int type, uint16_t port, bool loopback, const char* step) {
  Fd fd(socket(family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  Must(fd.get(), step);
  struct sockaddr_in v4 = {};
  struct sockaddr_in6 v6 = {};
  const struct sockaddr* address;
  socklen_t size;
  if (family == AF_INET) {
    v4.sin_family = AF_INET;
    v4.sin_port = htons(port);
    v4.sin_addr.s_addr = htonl(loopback ? INADDR_LOOPBACK : INADDR_ANY);
    address = reinterpret_cast<struct sockaddr*>(&v4);
    size = sizeof v4;
  } else {
    int yes = 1;
    Must(setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &yes, sizeof yes), step);
    v6.sin6_family = AF_INET6;
    v6.sin6_port = htons(port);
    v6.sin6_addr = loopback ? in6addr_loopback : in6addr_any;
    address = reinterpret_cast<struct sockaddr*>(&v6);
    size = sizeof v6;
  }
  Must(bind(fd.get(), address, size), step);
  if (type == SOCK_STREAM) Must(listen(fd.get(), SOMAXCONN), step);
  return fd;
}

// Each datagram comes with the address that it was sent to (ip(7), IP_RECVORIGDSTADDR).
static Fd OpenForDatagrams(int family, const char* step) {
  Fd fd = Open(family, SOCK_DGRAM, 0, true, step);
  int yes = 1;
  Must(family == AF_INET ? setsockopt(fd.get(), IPPROTO_IP, IP_RECVORIGDSTADDR, &yes, sizeof yes) : setsockopt(fd.get(), IPPROTO_IPV6, IPV6_RECVORIGDSTADDR, &yes, sizeof yes), step);
  return fd;
}

Sockets SetUpNetwork() {
  Fd control(socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  Must(control.get(), "open a socket for lo");
  struct ifreq lo = {};
  strcpy(lo.ifr_name, "lo");
  lo.ifr_flags = IFF_UP | IFF_RUNNING;
  Must(ioctl(control.get(), SIOCSIFFLAGS, &lo), "bring lo up");
  Fd netlink(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
  Must(netlink.get(), "open rtnetlink");

  // With loopback addresses alone, look-ups with AI_ADDRCONFIG find nothing (getaddrinfo(3)).
  struct in_addr v4;
  struct in6_addr v6;
  inet_pton(AF_INET, "192.0.2.10", &v4);
  inet_pton(AF_INET6, "fd00:a::1", &v6);
  AddAddress(netlink.get(), AF_INET, &v4, sizeof v4, 32, "give lo an IPv4 address");
  AddLocalRoute(netlink.get(), AF_INET, "add the local IPv4 route");

  // A kernel without IPv6 knows no such sockets; one with it switched off gives lo no ::1.
  bool has6 = false;
  if (Fd probe(socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0)); probe) {
    struct sockaddr_in6 loopback = {};
    loopback.sin6_family = AF_INET6;
    loopback.sin6_addr = in6addr_loopback;
    has6 = bind(probe.get(), reinterpret_cast<struct sockaddr*>(&loopback), sizeof loopback) == 0;
  }
  if (has6) {
    AddAddress(netlink.get(), AF_INET6, &v6, sizeof v6, 128, "give lo an IPv6 address");
    AddLocalRoute(netlink.get(), AF_INET6, "add the local IPv6 route");
  }

  Sockets sockets;
  auto add = [&](ListeningSocket which, Fd fd) {
    sockets.mask |= 1u << which;
    sockets.fds.push_back(std::move(fd));
  };
  add(kRelay4, Open(AF_INET, SOCK_STREAM, 0, true, "open the relay's IPv4 socket"));
  if (has6) add(kRelay6, Open(AF_INET6, SOCK_STREAM, 0, true, "open the relay's IPv6 socket"));
  add(kDnsUdp4, Open(AF_INET, SOCK_DGRAM, 53, false, "open the resolver's IPv4 UDP socket"));
  if (has6) add(kDnsUdp6, Open(AF_INET6, SOCK_DGRAM, 53, false, "open the resolver's IPv6 UDP socket"));
  add(kDnsTcp4, Open(AF_INET, SOCK_STREAM, 53, false, "open the resolver's IPv4 TCP socket"));
  if (has6) add(kDnsTcp6, Open(AF_INET6, SOCK_STREAM, 53, false, "open the resolver's IPv6 TCP socket"));
  add(kUdp4, OpenForDatagrams(AF_INET, "open the relay's IPv4 UDP socket"));
  if (has6) add(kUdp6, OpenForDatagrams(AF_INET6, "open the relay's IPv6 UDP socket"));
  return sockets;
}

}  // namespace ambit
