// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

struct bpf_link;
struct bpf_object;

// What became of one hook: `state` is "attached" or "missing", `detail` says where, or why not.
struct HookState {
  std::string name, family, state, detail;
};

// The uprobes of bpf/tls.bpf.c. Not thread-safe: all calls from one thread.
class TlsProbes {
 public:
  // `share_maps` runs between open and load: it hands the object the maps that all programs share, and sets
  // `cell_level`. It returns 0 or a negative errno.
  TlsProbes(std::string object_path, std::function<int(bpf_object*)> share_maps);
  ~TlsProbes();
  TlsProbes(const TlsProbes&) = delete;
  TlsProbes& operator=(const TlsProbes&) = delete;

  // Loads the programs and attaches nothing. On failure `why` holds the reason with the verifier's last words. Idempotent.
  bool Load(std::string* why);

  // Attaches to the TLS functions of one file, for every process of the host that maps its inode. `flavour` is
  // "openssl" or "gnutls". A file that is attached already, under whatever path, gives the states of that time.
  // One state for each function that the library must have or has. Paths come from the host's administrator, never from a
  // job: links are followed, but not those of /proc.
  std::vector<HookState> Attach(const std::string& path, const std::string& flavour);

  // Takes every probe off; the programs stay loaded and can be attached again.
  void Detach();

 private:
  struct Library {
    std::vector<HookState> states;
    std::vector<bpf_link*> links;  // where one link holds one probe
    std::vector<int> multi;        // descriptors of links that hold several
  };
  int AttachProgram(const char* program, bool at_return, const std::string& file, const std::vector<uint64_t>& offsets, Library* library);

  std::string object_path_;
  std::function<int(bpf_object*)> share_maps_;
  bpf_object* object_ = nullptr;
  bool multi_ = false;
  std::map<std::pair<uint64_t, uint64_t>, Library> libraries_;  // by device and inode
};
