// Threads are borrowed from the OpenMP runtime that torch has loaded. Its workers last and spin between calls: threads
// of our own would share their cores with that spinning, and threads made anew in each call stay on their maker's core
// for tens of milliseconds (measured: two threads of either kind were no quicker than one). As everywhere in torch,
// libgomp does not survive a fork: a child that wants more than one thread must be spawned.

#include "parallel.h"

#include <dlfcn.h>

#include <atomic>
#include <thread>

namespace {

struct Job {
  const Part& part;
  int64_t parts;
  std::atomic<int64_t> next{0};
};

// Take parts until none is left: correct with any number of threads.
void serve(void* of) {
  Job& job = *static_cast<Job*>(of);
  for (int64_t number = job.next++; number < job.parts; number = job.next++) job.part.call(job.part.work, number);
}

using Serve = void (*)(void*);
// As libgomp and the other runtimes export it: call the function on that many threads, the caller among them, and wait.
using Together = void (*)(Serve serve, void* job, unsigned threads, unsigned flags);

// The runtime's entry, null where torch was built without one.
Together loaded_runtime() {
  for (const char* name : {"libgomp.so.1", "libiomp5.so", "libomp.so.5", "libomp.so", "libomp.dylib"})
    if (void* runtime = dlopen(name, RTLD_LAZY | RTLD_NOLOAD))
      if (void* entry = dlsym(runtime, "GOMP_parallel")) return reinterpret_cast<Together>(entry);
  return nullptr;
}

void on_new_threads(Job& job) {
  std::vector<std::thread> others;
  for (int64_t number = 1; number < job.parts; ++number) others.emplace_back(serve, &job);
  serve(&job);
  for (auto& other : others) other.join();
}

}  // namespace

void run_parts(int64_t parts, const Part& part) {
  Job job{part, parts};
  if (parts == 1) return serve(&job);
  static const Together together = loaded_runtime();
  if (!together) return on_new_threads(job);
  together(serve, &job, static_cast<unsigned>(parts), 0);
}
