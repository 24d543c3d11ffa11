// Shares and pieces of what a thread does; part of stepper.h.

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

struct Range {
  int64_t begin, end;
};
Range share(int64_t n, int64_t part, int64_t parts) {
  return {n * part / parts, n * (part + 1) / parts};
}
int64_t length(Range r) { return r.end - r.begin; }

// Features are shared out in panels of 32.
int64_t panels(int64_t width) { return (width + kBlock - 1) / kBlock; }
Range features_of(Range shared, int64_t width) {
  return {shared.begin * kBlock, smaller(shared.end * kBlock, width)};
}

// The even pieces, of whole units, in which a long range is gone through.
struct Pieces {
  Range range;
  int64_t unit, units, count;
  Pieces(Range whole, int64_t longest, int64_t multiple)
      : range(whole),
        unit(multiple),
        units((length(whole) + multiple - 1) / multiple),
        count((units * multiple + longest - 1) / longest) {}
  Range operator[](int64_t i) const {
    const Range r = share(units, i, count);
    return {range.begin + r.begin * unit, smaller(range.begin + r.end * unit, range.end)};
  }
};
